"""Stands for a process that is forked from the one of `tests/preloaded.py`: SOCKET MARKS INTERPRETER [-u] -m MODULE ...

MARKS is a folder with a file for each module that the real interpreter is still to run once.
"""

import contextlib
import os
import signal
import socket
import sys

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
LENGTH = 8


def run_by_the_real_one(marks: str, arguments: list[str]) -> bool:
    """Whether these arguments, without -u, are not for the forked one."""
    if arguments[:1] == ["-m"]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(marks, arguments[1]))  # noqa: PTH108, PTH118 - pathlib takes as long as all the rest
            return True
    return arguments[:1] not in (["-m"], ["-c"])


def main(address: str, marks: str, interpreter: str, *given: str) -> int:
    arguments = list(given)
    unbuffered = "PYTHONUNBUFFERED" in os.environ
    while arguments[:1] == ["-u"]:
        unbuffered = bool(arguments.pop(0))
    if run_by_the_real_one(marks, arguments):
        os.execv(interpreter, [interpreter, *given])
    server = socket.socket(socket.AF_UNIX)
    server.connect(address)
    files = [int(name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208
    files = [file for file in files if file != server.fileno() and os.path.exists(f"/proc/self/fd/{file}")]  # noqa: PTH110
    executable = os.path.join(marks, "python")  # noqa: PTH118
    request = repr((executable, arguments, unbuffered, files, os.getcwd(), dict(os.environ))).encode()  # noqa: PTH109
    socket.send_fds(server, [len(request).to_bytes(LENGTH, "little")], files)
    for number in PASSED_ON:
        signal.signal(number, lambda number, frame: server.send(bytes([number])))
    server.sendall(request)
    status = server.recv(LENGTH)
    if not status:
        os.write(2, b"the process that forks is gone\n")
        return 70
    code = int.from_bytes(status, "little", signed=True)
    if code < 0:
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    os._exit(main(*sys.argv[1:]))
