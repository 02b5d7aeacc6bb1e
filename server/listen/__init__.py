"""What is heard: samples -> speech and silence -> turns -> words. A small interface for each part (base); an implementation is one file."""
