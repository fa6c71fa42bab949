"""The engine process: schedules, runs the model, and speaks frames with the server. No text, no HTTP."""
