"""The load on a service, for locust: every user asks for one row after the other, without a pause."""

import json
import os

from locust import FastHttpUser, task

BODY = json.dumps({"rows": [[0.25] * int(os.environ["BLL_BENCH_WIDTH"])]})


class Asking(FastHttpUser):
    """One connection."""

    @task
    def predict(self) -> None:
        """One row; anything but probabilities is a failure."""
        headers = {"Content-Type": "application/json"}
        with self.client.post("/predict", BODY, headers=headers, catch_response=True) as answer:
            if answer.status_code != 200 or "probs" not in answer.json():
                answer.failure(f"status {answer.status_code}")
