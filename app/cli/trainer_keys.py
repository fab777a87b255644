"""What the keys of Lightning's trainer mean in this project, for the reference of the configuration."""

TRAINER_KEYS: dict[str, tuple[str, str]] = {
    "accelerator": ("`auto`, `cpu`, `gpu` …", "The kind of device; `auto` takes GPUs where there are any."),
    "devices": ("whole number, list or `auto`", "Processes on each machine, each with one device."),
    "num_nodes": ("whole number", "Machines."),
    "strategy": ("text or class", "How the model lies on the devices: give one of the files of `configs/strategy/`."),
    "precision": (
        "`32-true`, `bf16-mixed`, `bf16-true`",
        "What the policy's forward and backward pass is computed in. Master weights, log-probabilities, traces and the "
        "loss stay float32. Null is `32-true`.",
    ),
    "default_root_dir": ("text or null", "The folder of all runs; `runs` where it is null."),
    "val_check_interval": (
        "whole number or null",
        "Iterations between two evaluations of the benchmarks; null evaluates only before the first iteration. A "
        "number that divides `data.iterations` evaluates the last policy, too.",
    ),
    "num_sanity_val_steps": (
        "whole number",
        "−1 evaluates the benchmarks before the first iteration, 0 does not; other numbers evaluate that many batches.",
    ),
    "limit_val_batches": ("number or null", "Evaluate the first so many batches (or share of them) of each benchmark."),
    "max_time": ("text or null", "End the run after this time (`DD:HH:MM:SS`), with a checkpoint."),
    "logger": ("class, list, `false` or null", "Where curves go; null is TensorBoard, in the run's folder."),
    "log_every_n_steps": ("whole number", "Curves have a point every so many iterations."),
    "callbacks": ("list of classes", "Further Lightning callbacks of your own."),
    "plugins": ("list of classes", "Lightning plugins, such as a `SLURMEnvironment` with settings of its own."),
    "profiler": ("text or class", "A profiler of Lightning's, such as `simple` or `pytorch`."),
    "deterministic": ("true, false, `warn` or null", "Ask torch for deterministic kernels alone."),
    "detect_anomaly": ("true or false", "Stop at the first operation whose gradient is NaN; slow."),
    "enable_progress_bar": ("true, false or null", "`false` prints no line of progress."),
}
"""Key → type and meaning, of the keys that a run here may want to set."""
