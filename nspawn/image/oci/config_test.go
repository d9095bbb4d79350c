package oci

import (
	"encoding/json"
	"testing"

	"github.com/shoenig/test/must"
)

func TestConfigPaths(t *testing.T) {
	for in, want := range map[string]string{
		"":            "",
		"/srv":        "/srv",
		"app":         "/app", // for example, of buildah config --workingdir app
		"./app/":      "/app",
		"../../etc":   "/etc",
		"/srv/../..":  "/",
		"/a//b/./c":   "/a/b/c",
		"C:\\windows": "/C:\\windows",
	} {
		c, err := parseConfig([]byte(`{"config":{"WorkingDir":` + quote(in) + `}}`))
		must.NoError(t, err)
		must.Eq(t, want, c.image().WorkingDir)
	}
	c, err := parseConfig([]byte(`{"config":{"Volumes":{"/data":{},"cache":{},"/data/":{},"/":{},"../x":{},"":{}}}}`))
	must.NoError(t, err)
	must.Eq(t, []string{"/cache", "/data", "/x"}, c.image().Volumes)
}

func quote(s string) string {
	text, _ := json.Marshal(s)
	return string(text)
}

// TestCommand checks docker's table of ENTRYPOINT and CMD.
func TestCommand(t *testing.T) {
	list := func(words ...string) []string { return words }
	for name, c := range map[string]struct {
		image               Config
		entrypoint, command []string
		want                []string
	}{
		"nothing":                         {Config{}, nil, nil, nil},
		"cmd":                             {Config{Cmd: list("cmd", "p")}, nil, nil, list("cmd", "p")},
		"entrypoint":                      {Config{Entrypoint: list("entry")}, nil, nil, list("entry")},
		"both":                            {Config{Entrypoint: list("entry"), Cmd: list("cmd")}, nil, nil, list("entry", "cmd")},
		"command replaces cmd":            {Config{Entrypoint: list("entry"), Cmd: list("cmd")}, nil, list("mine"), list("entry", "mine")},
		"entrypoint drops cmd":            {Config{Entrypoint: list("entry"), Cmd: list("cmd")}, list("my"), nil, list("my")},
		"entrypoint with command":         {Config{Entrypoint: list("entry"), Cmd: list("cmd")}, list("my"), list("mine"), list("my", "mine")},
		"empty entrypoint":                {Config{Entrypoint: list("entry"), Cmd: list("cmd")}, []string{}, nil, nil},
		"empty entrypoint with a command": {Config{Entrypoint: list("entry"), Cmd: list("cmd")}, []string{}, list("mine"), list("mine")},
	} {
		must.Eq(t, c.want, c.image.Command(c.entrypoint, c.command), must.Sprint(name))
	}
}
