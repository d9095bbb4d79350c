package job

import (
	"testing"

	"github.com/hashicorp/nomad/helper/pluginutils/hclutils"
	"github.com/shoenig/test/must"
)

// TestMapOptions uses the forms of a map in a job.
func TestMapOptions(t *testing.T) {
	want := map[string]string{"local/a": "/a", "local/b": "/b"}
	for _, hcl := range []string{
		`bind { 
			"local/a" = "/a"
			"local/b" = "/b"
		}`,
		`bind = { "local/a" = "/a", "local/b" = "/b" }`,
	} {
		must.Eq(t, want, parseTask(t, "image = \"debian\"\n"+hcl).Bind)
	}
	var task TaskConfig
	hclutils.NewConfigParser(TaskSchema).ParseJson(t, `{"Config": {"image": "debian", "bind": {"local/a": "/a", "local/b": "/b"}}}`, &task)
	must.Eq(t, want, task.Bind)
}
