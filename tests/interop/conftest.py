"""Before ultralytics is imported: its settings lie in a folder of their own, and it asks nobody for news."""

import os
import tempfile

os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp(prefix="mars-interop-"))
os.environ.setdefault("YOLO_OFFLINE", "true")
