"""What several backends do, one subject a file; a backend imports from here and from no other backend."""
