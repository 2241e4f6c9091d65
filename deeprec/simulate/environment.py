"""The simulator as a gymnasium environment; needs the package gymnasium (extra `simulate`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from deeprec._install import install_command
from deeprec.simulate.world import Sessions, World

try:
    import gymnasium
    from gymnasium import spaces
except ImportError as error:
    raise ImportError(
        f"deeprec.simulate.environment needs gymnasium ({error}); install it: {install_command('simulate')}"
    ) from None


class RecommenderEnv(gymnasium.Env[dict[str, Any], Any]):
    """One user at a time: an action is a slate, the reward what its clicks earn, an episode a session.

    An observation has "user", whose taste the session began with; "clicked", [history], the last clicked items in
    order at the right end, -1 before them; and with `shows_state` "state", [k], the taste itself. An item that stands
    on a slate for the second time is not clicked there. `info` has "clicks" [K] of the step.

    Args:
        world: who clicks on what.
        steps: of an episode, >= 1.
        slate_size: K, >= 1; an action is an item for 1, and a vector of K items otherwise.
        history: clicked items that are shown, >= 1.
        shows_state: whether the taste is.
    Raises:
        ValueError: an argument out of range; by `step` an action that is none, or a step after the end.
    """

    def __init__(
        self, world: World, *, steps: int = 20, slate_size: int = 1, history: int = 10, shows_state: bool = False
    ) -> None:
        world.require_slate(slate_size)
        for name, given in (("steps", steps), ("history", history)):
            if given < 1:
                raise ValueError(f"RecommenderEnv: {name} must be >= 1, got {given}")
        self.world, self.steps, self.slate_size = world, steps, slate_size
        self.history, self.shows_state = history, shows_state
        count = world.num_items
        self.action_space = spaces.Discrete(count) if slate_size == 1 else spaces.MultiDiscrete([count] * slate_size)
        seen: dict[str, spaces.Space[Any]] = {
            "user": spaces.Discrete(world.num_users),
            "clicked": spaces.Box(-1, count - 1, (history,), np.int64),
        }
        if shows_state:
            seen["state"] = spaces.Box(-np.inf, np.inf, (world.users.shape[1],), np.float64)
        self.observation_space = spaces.Dict(seen)
        self._sessions: Sessions | None = None
        self._clicked: list[int] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """A new session of a random user, or of options["user"]."""
        super().reset(seed=seed)
        given = (options or {}).get("user")
        user = int(self.np_random.integers(self.world.num_users)) if given is None else int(given)
        self._sessions, self._clicked = self.world.begin(np.array([user]), self.slate_size), []
        return self._observed(self._sessions), {}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Show a slate; terminated after the last step."""
        sessions = self._sessions
        if sessions is None or sessions.items.shape[1] >= self.steps:
            raise ValueError("RecommenderEnv: step needs a session that goes on; call reset()")
        if not self.action_space.contains(action):
            raise ValueError(f"RecommenderEnv: action must be in {self.action_space}, got {action!r}")
        slate = np.asarray(action, dtype=np.int64).reshape(1, self.slate_size)
        seen = np.asarray(self.world.examination[: self.slate_size])
        _, first = np.unique(slate[0], return_index=True)
        is_new = np.isin(np.arange(self.slate_size), first)
        chances = self.world.chances(sessions.states)[0, slate[0]] * seen * is_new
        clicks = self.np_random.random((1, self.slate_size)) < chances
        sessions = self._sessions = self.world.after(sessions, slate, clicks)
        self._clicked += slate[clicks].tolist()
        reward = float(self.world.rewards[slate[clicks]].sum())
        return self._observed(sessions), reward, sessions.items.shape[1] == self.steps, False, {"clicks": clicks[0]}

    def _observed(self, sessions: Sessions) -> dict[str, Any]:
        clicked = np.full(self.history, -1, dtype=np.int64)
        last = self._clicked[-self.history :]
        clicked[self.history - len(last) :] = last
        seen: dict[str, Any] = {"user": np.int64(sessions.users[0]), "clicked": clicked}
        return {**seen, "state": sessions.states[0].copy()} if self.shows_state else seen
