"""stub"""

import math


class Schedule:
    def __init__(self, config):
        self.config = config
        self.by_step = config.warmup_steps > 0

    def share(self, epoch, step, values):
        c = self.config
        best, share = -math.inf, 1.0
        if c.lr_schedule == "plateau":
            for v in values:
                share *= 1.0 if v > best else 0.1
                best = max(best, v)
        left = 1 - epoch / c.epochs if c.lr_schedule == "linear" else 1.0
        return share * left / (1 + epoch * c.lr_decay)
