"""What every floor of the house shares: boxes, anchors, batches and the look-outs inside the arithmetic."""
