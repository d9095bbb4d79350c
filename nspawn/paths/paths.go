// Package paths compares paths by their text. They must be clean (path.Clean).
package paths

import "strings"

// Within reports whether a path is the directory dir or lies below it.
func Within(dir, path string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// Overlap reports whether one of two paths lies within the other.
func Overlap(a, b string) bool { return Within(a, b) || Within(b, a) }
