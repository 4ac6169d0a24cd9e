"""What leaves a data set for people and other programs: pictures, pages and label files."""
