"""What comes in: pictures, walks and recordings that worlds start from."""
