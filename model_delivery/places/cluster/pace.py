"""How often a run that waits looks: a budget of requests, kept whatever happens."""

from __future__ import annotations

import time

from model_delivery.places.cluster.client import Client
from model_delivery.places.cluster.look import Look

# requests a minute, the lease's too: some are kept back for a change, and for a look at
# everything
ON_TIME, ON_CHANGE = 36, 50
SCHEDULE = (0.5, 1.0, 2.0, 5.0, 9.0)  # what can no longer come is told within 10 s
SETTLING = 0.3  # a pod's changes come in flocks: one look sees them all


class Pace:
    """Soon at first, then every 9 s, and when a pod's state has changed; never above the
    budget.
    """

    def __init__(self, client: Client, look: Look) -> None:
        self.client, self.look = client, look
        self._looks, self._began = 0, 0.0

    def restart(self) -> None:
        """After an effect the waiting begins anew."""
        self._looks = 0

    def wait(self, delivery: str, timeout: float) -> bool:
        """Until it is time for the next look; is it one of many, without an effect of
        ours between?
        """
        now, waiting = time.monotonic(), self._looks > 0
        end, self._began = now + timeout, self._began if waiting else now
        cost = self.look.price if waiting else 1
        planned = SCHEDULE[min(self._looks, len(SCHEDULE) - 1)]
        self._looks += 1
        changed = self.look.changes(delivery, min(timeout, planned))
        if changed:
            time.sleep(min(SETTLING, max(0.0, end - time.monotonic())))
        while (rest := min(self._over_budget(cost, ON_CHANGE if changed else ON_TIME), end - time.monotonic())) > 0:
            if changed:
                time.sleep(rest)
            else:
                changed = self.look.changes(delivery, rest)
        return waiting

    def _over_budget(self, cost: int, limit: int) -> float:
        """For how many seconds a look is more than ``limit`` requests a minute allow. One
        that is dear itself counts as half of them: it must come some day.
        """
        now = time.monotonic()
        spent = [at for at in tuple(self.client.asked) if at >= max(self._began, now - 60)]
        over = len(spent) + min(cost, limit // 2) - limit
        return spent[over - 1] + 60.0 - now if over > 0 else 0.0
