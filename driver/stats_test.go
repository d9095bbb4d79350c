package driver

import (
	"testing"
	"time"

	"github.com/hashicorp/nomad/helper/testlog"
	"github.com/shoenig/test/must"
)

// TestStatsOfUnknownTask checks that Nomad has nothing to log of a task that it destroyed
// while it asked for its use.
func TestStatsOfUnknownTask(t *testing.T) {
	usages, err := New(t.Context(), testlog.HCLogger(t)).TaskStats(t.Context(), "unknown", time.Second)
	must.NoError(t, err)
	_, open := <-usages
	must.False(t, open)
}
