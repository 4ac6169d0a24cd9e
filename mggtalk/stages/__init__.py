"""The stages of training: thin LightningModules, each trains parts of one MGGTalk."""
