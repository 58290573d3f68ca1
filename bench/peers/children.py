"""Processes that answer questions: one library each, told in turn what to do, given up when they take too long."""
import json
import os
import selectors
import signal
import subprocess
import time


class Failed(Exception):
    """A process did not answer as it should; the message is what is recorded."""


class Child:
    """A process that reads JSON lines and answers each with one on a pipe of its own; the rest it prints goes to a log."""

    def __init__(self, name, command, log_path):
        self.name, self.log_path, self.buffer = name, log_path, b""
        read_end, write_end = os.pipe()
        with open(log_path, "ab") as log:
            self.process = subprocess.Popen([*command, "--reply-fd", str(write_end)], stdin=subprocess.PIPE, stdout=log,
                                            stderr=log, pass_fds=[write_end], start_new_session=True)
        os.close(write_end)
        self.replies = read_end
        self.selector = selectors.DefaultSelector()
        self.selector.register(read_end, selectors.EVENT_READ)

    def send(self, request):
        try:
            self.process.stdin.write((json.dumps(request) + "\n").encode())
            self.process.stdin.flush()
        except OSError:
            raise Failed(self.ended()) from None

    def receive(self, seconds):
        """The answer; raises Failed, and ends the process, when it is an error, or none, or comes too late."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self.buffer:
            if not self.selector.select(max(deadline - time.monotonic(), 0)):
                self.end()
                raise Failed(f"no answer within {seconds:.0f} s")
            piece = os.read(self.replies, 1 << 20)
            if not piece:
                raise Failed(self.ended())
            self.buffer += piece
        line, self.buffer = self.buffer.split(b"\n", 1)
        try:
            answer = json.loads(line)
        except ValueError:
            self.end()
            raise Failed(f"an answer that is no JSON: {line[:80]!r}") from None
        if "error" in answer:
            self.end()
            raise Failed(answer["error"])
        return answer

    def ask(self, request, seconds):
        self.send(request)
        return self.receive(seconds)

    def ended(self):
        """Words for a process that went away."""
        try:
            self.process.wait(5)  # it closed its pipe and is about to end by itself
        except subprocess.TimeoutExpired:
            pass
        self.end()
        code = self.process.returncode
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        lines = [line for line in self.log_path.read_text(errors="replace").splitlines() if line.strip()]
        return f"ended with {how}" + (f": {lines[-1].strip()[:300]}" if lines else "")

    def end(self):
        """Ends the process and what it started; may be called again."""
        if self.process.poll() is None:
            self.process.stdin.close()
            try:
                self.process.wait(0.5)
            except subprocess.TimeoutExpired:
                end_group(self.process)
        if self.replies is not None:
            self.selector.close()
            os.close(self.replies)
            self.replies = None


def end_group(process):
    """Ends a process that leads a session of its own, with its compilers."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def run_all(tasks, most_at_once, most_bytes, seconds, log_path):
    """Runs commands side by side: [(words, command, bytes it needs)], at most so many and so many bytes at once.

    Returns one text for each task that failed or did not end in time.
    """
    deadline, waiting, running, problems = time.monotonic() + seconds, list(tasks), [], []
    with open(log_path, "ab") as log:
        while waiting or running:
            for task in list(waiting):
                fits = sum(size for _, _, size in running) + task[2] <= most_bytes or not running
                if len(running) < most_at_once and fits:
                    waiting.remove(task)
                    process = subprocess.Popen(task[1], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                               start_new_session=True)
                    running.append((process, task[0], task[2]))
            for entry in list(running):
                process, words, _ = entry
                late = time.monotonic() > deadline
                if process.poll() is None and not late:
                    continue
                running.remove(entry)
                if process.poll() is None:
                    end_group(process)
                    problems.append(f"{words}: no end within {seconds:.0f} s")
                elif process.returncode != 0:
                    problems.append(f"{words}: exit code {process.returncode}")
            if time.monotonic() > deadline and waiting:
                problems += [f"{words}: not begun within {seconds:.0f} s" for words, _, _ in waiting]
                waiting = []
            time.sleep(0.05)
    return problems
