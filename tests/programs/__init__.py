"""The ways in which programs call a U-Net, each as a loop of a few lines."""
