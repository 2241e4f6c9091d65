import torch


class EpochAverage:
    def __init__(self, keep):
        self.keep = keep
        self.average = {}

    def update(self, weights):
        self.average = {k: torch.lerp(v, self.average.get(k, v), self.keep) for k, v in weights.items()}
        return self.average

    def state_dict(self):
        return self.average

    def load_state_dict(self, s):
        self.average = dict(s)
