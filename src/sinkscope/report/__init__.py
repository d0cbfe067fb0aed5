"""Figures and the offline HTML pages, from artifacts alone."""

from ._compare_page import write_comparison_page as write_comparison_page
from ._compare_text import cell_text as cell_text, change_text as change_text, share as share
from ._format import NONE as NONE
from ._report import write_figures as write_figures, write_report as write_report
