"""The book's builder: chapters run, pages rendered and checked."""
