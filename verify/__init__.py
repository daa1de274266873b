"""Find the mark: test whether a suspect was trained on a teacher's marked outputs."""

import watermark

if not hasattr(watermark, "__stillmark__"):
    raise ImportError(
        "the package 'watermark' imported here is not stillmark's: the notebook magic of that name on PyPI "
        f"has taken its place ({getattr(watermark, '__file__', 'unknown file')}). "
        "Mend it with: pip uninstall -y watermark && pip install --force-reinstall --no-deps stillmark"
    )
