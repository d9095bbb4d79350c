package idmap

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// accounts are the ranges of UIDs and GIDs that the host itself uses.
type accounts []idRange

// idRange is the range of IDs from first to last, both included.
type idRange struct{ first, last uint64 }

// overlap reports whether any of the RangeSize IDs from base on is in use.
func (a accounts) overlap(base uint32) bool {
	for _, s := range a {
		if s.first < uint64(base)+RangeSize && s.last >= uint64(base) {
			return true
		}
	}
	return false
}

// readAccounts reads users, groups, and the ranges delegated to users (subuid(5)). It
// ignores accounts of network directories: they should not have IDs in the range that
// systemd reserves, and looking them up could take long.
func readAccounts(root string) (accounts, error) {
	var all accounts
	for _, source := range []struct {
		file  string
		parse func(fields []string) (idRange, bool)
	}{
		{"/etc/passwd", parseAccount},
		{"/etc/group", parseAccount},
		{"/etc/subuid", parseDelegated},
		{"/etc/subgid", parseDelegated},
	} {
		text, err := os.ReadFile(root + source.file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read accounts of the host: %w", err)
		}
		for line := range strings.Lines(string(text)) {
			if s, ok := source.parse(strings.Split(strings.TrimSpace(line), ":")); ok {
				all = append(all, s)
			}
		}
	}
	return all, nil
}

// parseAccount parses "name:x:uid:…" of passwd(5) and "name:x:gid:…" of group(5).
func parseAccount(fields []string) (idRange, bool) {
	if len(fields) < 3 {
		return idRange{}, false
	}
	id, err := strconv.ParseUint(fields[2], 10, 32)
	return idRange{id, id}, err == nil
}

// parseDelegated parses "name:first:count" of subuid(5).
func parseDelegated(fields []string) (idRange, bool) {
	if len(fields) < 3 {
		return idRange{}, false
	}
	first, err1 := strconv.ParseUint(fields[1], 10, 32)
	count, err2 := strconv.ParseUint(fields[2], 10, 32)
	return idRange{first, first + count - 1}, err1 == nil && err2 == nil && count > 0
}
