"""Reports that stand on their own: canonical JSON, and Markdown and one HTML file made from it.

Knows no engine and no kernels: whoever measures fills in the models of `parts`, `evaluation`,
`comparison` and `finetuning`, and `write` does the rest.

Reading order: `values` (types of fields), `parts`, `evaluation`, `comparison`, `binning` and
`finetuning` (what a report holds), `schema` (its JSON Schema); `cells` (numbers as text),
`document` (sections, tables, figures), `svg`, `scatter`, `layer_plots`, `curve_plots`, `bars` and
`heatmap` (drawings); `shared_sections`, `search_section`, `bytes_section`, `predictor_section`,
`curves_section`, `evaluation_document`, `comparison_document` and `finetuning_document` (which
tables and figures a report has); `markdown`, `page` with page.html and style.css, and `write`.
"""

from sparseinfer.report.comparison import ComparisonReport
from sparseinfer.report.evaluation import EvaluationReport
from sparseinfer.report.finetuning import FinetuningReport
from sparseinfer.report.schema import Report, schema_text
from sparseinfer.report.write import check_folder, json_text, write

__all__ = [
    "ComparisonReport",
    "EvaluationReport",
    "FinetuningReport",
    "Report",
    "check_folder",
    "json_text",
    "schema_text",
    "write",
]
