"""The command line as its tests use it; see `command_line`."""

from command_line import learn, run, workplace

__all__ = ["learn", "run", "workplace"]
