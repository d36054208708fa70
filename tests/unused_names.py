"""Names that vulture finds unused in the package, the benchmarks, the examples and the documentation, and who uses them.

By name alone where a library asks for any method of that name, else by file and name. Names that only tests use are not
listed: they are dead.
"""

UNUSED = {
    "Python calls it for the attributes of a module, and dir() lists them": ("__getattr__", "__dir__"),
    "torch.nn.Module calls it to print the module": ("fitting/elbo.py:extra_repr",),
    "the command line finds it by its name": (
        "cli/commands/fit.py:fit_command",
        "cli/commands/bayesianize.py:bayesianize_command",
        "cli/commands/predict.py:predict_command",
        "cli/commands/evaluate.py:evaluate_command",
        "cli/commands/ood.py:ood_command",
        "cli/commands/diagnose.py:diagnose_command",
        "cli/commands/compare.py:compare_command",
        "cli/commands/report.py:report_command",
        "cli/commands/check.py:check_command",
        "cli/commands/export.py:export_command",
        "cli/commands/serve.py:serve_command",
        "cli/commands/schema.py:schema_command",
    ),
    "uvicorn calls it for a signal, and while workers run": (
        "serve/server.py:handle_hup",
        "serve/server.py:keep_subprocess_alive",
    ),
    "FastAPI calls it for its description": ("serve/app.py:openapi",),
    "the configuration of logging names it": ("serve/logs.py:JsonLines",),
    "the warnings of Python call it": ("cli/console.py:showwarning",),
    "PyYAML asks for it": ("cli/yaml_file.py:ignore_aliases", "cli/yaml_file.py:yaml_implicit_resolvers"),
    "notebooks call it to show an object": ("_repr_html_", "_repr_png_"),
    "pyro.distributions reads it of a distribution": ("has_rsample", "arg_constraints"),
    "torch.distributions reads it of a transform": ("domain", "codomain", "bijective", "_inverse"),
    "Pyro calls it for a sample or param statement under a messenger": ("_pyro_sample", "_pyro_param"),
    "ArviZ's ELPDData, the base class, writes its report with it": (
        "elpd/result.py:_header",
        "elpd/result.py:_footer",
    ),
    "an autoguide of Pyro asks for it": (
        "guides/base.py:_loc_scale",
        "guides/flow.py:_prototype_tensor",
    ),
    "scikit-learn reads it of an estimator's tags": (
        "sklearn/counter.py:positive_only",
        "sklearn/regressor.py:multi_output",
        "sklearn/regressor.py:single_output",
    ),
    "users of scikit-learn call it: a method that estimators have": (
        "sklearn/regressor.py:partial_fit",
        "sklearn/values.py:predict_quantiles",
    ),
    "Ray Serve calls it of each replica": ("serve/on_ray.py:check_health",),
    "zipfile writes it": ("artefact.py:comment", "artefact.py:external_attr"),
    "torch's exporter gives it by this name": (
        "export/lowering.py:check_errors",
        "export/lowering.py:out_int32",
        "export/lowering.py:sorter",
    ),
    "onnxruntime reads it of a session's options": (
        "runtime/loading.py:intra_op_num_threads",
        "runtime/loading.py:log_severity_level",
    ),
    "templates of reports read it": ("reporting/blocks.py:numeric",),
    "users call it: a documented method or property of a result": (
        "priors/spike_and_slab.py:slab_probability",
    ),
}
