"""What an edit changed: objects that apply, come off exactly, add up, and are saved as data."""
