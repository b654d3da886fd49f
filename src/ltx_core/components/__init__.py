"""The parts a sampler is put together from: schedules, steps, guidance, noise, and the layout of tokens."""
