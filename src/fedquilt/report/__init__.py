"""Figures, tables and the HTML page of finished or running runs.

Everything here reads run directories (:mod:`fedquilt.report.read`) and nothing else of fedquilt: a run can be reported on a
machine that could not have trained it. matplotlib, plotly and umap are imported where they are used.
"""
