package machine

import (
	"testing"

	"github.com/shoenig/test/must"
)

func TestTmpfsCheck(t *testing.T) {
	for _, option := range []string{"size=64M", "size=10%", "mode=0755", "nr_inodes=4k", "uid=1000", "ro", "noexec", "relatime"} {
		must.NoError(t, Tmpfs{Options: []string{"mode=1777", option}}.Check(), must.Sprint(option))
	}
	// Names of libmount's MNT_LINUX_MAP, which systemd-nspawn turns into flags of mount(2),
	// and values that are more than one option.
	for _, option := range []string{
		"remount", "bind", "rbind", "move", "private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "dev", "mand", "silent",
		"", "size", "size=", "size=1M,remount", "size=1M\n", "mode=0888", "mode=17777", "uid=-1", "uid=0x0", "ro=1", " remount", "context=x", "source=/x",
	} {
		must.Error(t, Tmpfs{Options: []string{"mode=1777", option}}.Check(), must.Sprint(option))
	}
}
