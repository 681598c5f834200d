"""Programs that run beside a system under test, and what they respond by HTTP."""

import os
import subprocess
import urllib.error
import urllib.request

from system import Failed, check, eventually


class Program:
    """A program that runs until the `with` block ends."""

    def __init__(self, command, env, ready, log):
        self.command, self.env, self.ready, self.log = command, env, ready, log
        self.process = None

    def __enter__(self):
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command, env={**os.environ, **self.env}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

        def is_ready():
            check(self.process.poll() is None, f"{self.command[0]} is running:\n{self.log.read_text()[-2000:]}")
            return fetch(self.ready) is not None

        try:
            eventually(f"{self.command[0]} is ready", 60, is_ready)
        except Failed as error:
            self.__exit__()
            raise Failed(f"{error}\n{self.log.read_text()[-3000:]}") from None
        return self

    def __exit__(self, *_):
        # After SIGTERM Jaeger would take ten seconds.
        self.process.kill()
        self.process.wait()


def fetch(url):
    """The response body, or None on 404."""
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.read().decode()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise Failed(f"{url}: {error.code} {error.read().decode()[:500]}") from None
