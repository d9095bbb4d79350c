package download

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// algorithm is the prefix of every digest.
const algorithm = "sha256:"

// findSum returns the SHA-256 of a file, in lower case, from a list in the format of
// sha256sum(1), with or without --tag. It ignores other lines, so the list may have a
// header.
func findSum(list []byte, name string) (string, error) {
	found, entries := "", 0
	for line := range strings.Lines(string(list)) {
		sum, of, ok := parseLine(strings.TrimRight(line, "\r\n"))
		if !ok {
			continue
		}
		entries++
		if of != name || sum == found {
			continue
		}
		if found != "" {
			return "", fmt.Errorf("two checksums for %q, %s and %s", name, found, sum)
		}
		found = sum
	}
	if found == "" {
		return "", fmt.Errorf("none of its %d checksums is for %q; give sha256 in the job", entries, name)
	}
	return found, nil
}

// parseLine parses "SHA256 (NAME) = SUM", "SUM  NAME", "SUM *NAME" and "SUM NAME". The
// last form is used by linuxcontainers.org, and systemd-importd accepts it as well.
func parseLine(line string) (sum, name string, ok bool) {
	if rest, tagged := strings.CutPrefix(line, "SHA256 ("); tagged {
		if i := strings.LastIndex(rest, ") = "); i >= 0 {
			name, sum = rest[:i], rest[i+len(") = "):]
		}
	} else if sum, name, ok = strings.Cut(line, " "); ok && name != "" && (name[0] == ' ' || name[0] == '*') {
		name = name[1:]
	}
	sum, ok = parseSum(sum)
	return sum, name, ok && name != ""
}

// parseSum checks that text has 64 hexadecimal digits, and returns them in lower case.
func parseSum(text string) (string, bool) {
	_, err := hex.DecodeString(text)
	return strings.ToLower(text), err == nil && len(text) == 64
}
