"""Does a training step synchronise its gradients? Two processes on this machine, against one."""
