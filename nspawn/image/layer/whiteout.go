package layer

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Names of whiteouts in an OCI layer (layer.md, "Whiteouts").
const (
	whiteoutPrefix = ".wh."
	opaqueName     = ".wh..wh..opq"
)

func isWhiteoutName(name string) bool {
	return strings.HasPrefix(name, whiteoutPrefix)
}

// isWhiteout tells whether overlayfs takes a file for a whiteout. In the tree,
// only whiteout makes such.
func isWhiteout(file unix.Stat_t) bool {
	return file.Mode&unix.S_IFMT == unix.S_IFCHR && file.Rdev == 0
}

// whiteout makes the whiteout that the entry at stands for. A whiteout is about
// the layers below only, so what this layer has of that name stays, wherever in
// the stream it is; but if it is a directory, nothing from below may show in it.
func whiteout(at entryAt) error {
	if at.name == opaqueName {
		return setOpaque(entryAt{at.dir, "."})
	}
	hidden := entryAt{at.dir, strings.TrimPrefix(at.name, whiteoutPrefix)}
	if isWhiteoutName(hidden.name) { // AUFS keeps its own things under such names
		return nil
	}
	if hidden.name == "" || hidden.name == "." || hidden.name == ".." {
		return fmt.Errorf("a whiteout can not hide %q", hidden.name)
	}
	err := unix.Mknodat(hidden.dir, hidden.name, unix.S_IFCHR, 0)
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make whiteout: %w", err)
	}
	there, err := hidden.stat()
	if err == nil && there.Mode&unix.S_IFMT == unix.S_IFDIR {
		return setOpaque(hidden)
	}
	return err
}

// setOpaque has a directory hide what the layers below have in theirs.
func setOpaque(dir entryAt) error {
	if err := unix.Lsetxattr(dir.path(), "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		return fmt.Errorf("make directory opaque: %w", err)
	}
	return nil
}
