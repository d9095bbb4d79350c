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

// isWhiteout reports whether overlayfs interprets a file as a whiteout. In the tree, only
// the function whiteout creates such files.
func isWhiteout(file unix.Stat_t) bool {
	return file.Mode&unix.S_IFMT == unix.S_IFCHR && file.Rdev == 0
}

// whiteout creates the whiteout for the entry at. A whiteout applies only to the layers
// below, so a file of this layer with that name is kept, wherever it is in the stream. If
// it is a directory, its contents in the layers below are hidden.
func whiteout(at entryAt) error {
	if at.name == opaqueName {
		return setOpaque(entryAt{at.dir, "."})
	}
	hidden := entryAt{at.dir, strings.TrimPrefix(at.name, whiteoutPrefix)}
	if isWhiteoutName(hidden.name) { // AUFS uses such names for its own purposes
		return nil
	}
	if hidden.name == "" || hidden.name == "." || hidden.name == ".." {
		return fmt.Errorf("a whiteout cannot hide %q", hidden.name)
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

// setOpaque makes a directory hide the contents of the same directory in the layers
// below.
func setOpaque(dir entryAt) error {
	if err := unix.Lsetxattr(dir.path(), "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		return fmt.Errorf("make directory opaque: %w", err)
	}
	return nil
}
