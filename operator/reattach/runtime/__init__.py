"""Parts of any controller. They know no kind of object."""
