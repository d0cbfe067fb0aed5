"""Figures and the offline HTML page, from an artifact alone."""

from ._report import write_figures as write_figures, write_report as write_report
