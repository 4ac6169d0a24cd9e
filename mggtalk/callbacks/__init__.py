"""What happens beside training: curves and pictures, guards, stopping and saving; built from YAML by LightningCLI."""
