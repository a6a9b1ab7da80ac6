"""``gpudirect experiment``: does it pay to avoid DMA? The ports under ``examples/``, each as a
sequential program, with copies, double-buffered and direct, timed in turn and compared.

    ports      finds the examples and what each offers
    lines      counts the lines of code that each version needs
    measure    times the versions of one port, and checks every result
    analysis   ratios, verdicts and tables from a figures file
    report     plots and one self-contained HTML page
"""

NAMES = (
    "vector_add", "vector_add_c", "stencil3d", "sad", "tpacf", "spmv_updates", "histogram", "linked", "daq",
    "inference_params", "steering",
)  # fmt: skip
"""Every port, in the order in which they are told."""
