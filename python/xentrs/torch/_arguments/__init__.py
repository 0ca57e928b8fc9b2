"""The arguments of the losses: tensors and options, checked."""
