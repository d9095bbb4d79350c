package main

import (
	"path/filepath"
	"testing"

	"github.com/hashicorp/nomad/plugins/shared/hclspec"
	"github.com/shoenig/test/must"
)

func TestComplaintDoesNotWait(t *testing.T) {
	t.Parallel()
	fifo, err := makeFIFO(filepath.Join(t.TempDir(), "stderr"))
	must.NoError(t, err)
	defer fifo.Close()
	task := &task{stderr: fifo}
	must.EqOp(t, "", task.complaint())
	_, err = fifo.WriteString("no such file\n")
	must.NoError(t, err)
	must.EqOp(t, "no such file\n", task.complaint())
	must.EqOp(t, "", task.complaint())
}

func TestReadLine(t *testing.T) {
	t.Parallel()
	fifo, err := makeFIFO(filepath.Join(t.TempDir(), "stdout"))
	must.NoError(t, err)
	defer fifo.Close()
	go fifo.WriteString("12345\nmore\n")
	line, err := (&task{stdout: fifo}).readLine()
	must.NoError(t, err)
	must.EqOp(t, "12345", line)
}

func TestProcessor(t *testing.T) {
	t.Parallel()
	must.EqOp(t, "Fast CPU", processor("processor\t: 0\nmodel name\t: Fast CPU\n"))
	must.NotEq(t, "", processor("processor\t: 0\n"))
}

func TestWithDefaults(t *testing.T) {
	t.Parallel()
	schema := hclspec.NewObject(map[string]*hclspec.Spec{
		"given":   hclspec.NewDefault(hclspec.NewAttr("given", "bool", false), hclspec.NewLiteral("true")),
		"missing": hclspec.NewDefault(hclspec.NewAttr("missing", "string", false), hclspec.NewLiteral(`"5m"`)),
		"list":    hclspec.NewAttr("list", "list(string)", false),
	})
	options, err := withDefaults(schema, map[string]any{"given": false, "list": []string{"a", "b"}})
	must.NoError(t, err)
	must.Eq(t, map[string]any{"given": false, "missing": "5m", "list": []any{"a", "b"}}, options)
	_, err = withDefaults(schema, map[string]any{"unknown": 1})
	must.ErrorContains(t, err, "unknown")
}
