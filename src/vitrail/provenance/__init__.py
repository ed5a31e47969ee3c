"""What a picture says about how it was made, in our own words and in other programs'."""
