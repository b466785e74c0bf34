"""Why an object of an image was found or missed."""
