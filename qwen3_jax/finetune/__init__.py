"""Fine-tuning of published checkpoints: a speaker's recordings -> a whole checkpoint, or adapters merged into one (extra `finetune`)."""
