"""The YOLOv8 network: blocks, backbone, neck, head and the model that holds them."""
