"""Files -> uint8 images and labels -> batches on a device."""
