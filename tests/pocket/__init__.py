"""The generated corpus of the pocket model; its training needs torch and a GPU and is not tested here."""
