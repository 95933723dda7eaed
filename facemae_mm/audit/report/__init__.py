"""The audit's report: one HTML file that works offline, its tables as CSV and its numbers as JSON."""

from .findings import findings
from .write_report import write_report

__all__ = ['findings', 'write_report']
