"""Pascal VOC, YOLO and COCO data sets: find their files, read their annotations, find their splits."""
