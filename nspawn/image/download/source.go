package download

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"
)

// maxBeside is the maximum size of a list of checksums or of a signature in bytes, the
// same as in systemd-importd.
const maxBeside = 1 << 20

// source is the location of a file and of the files beside it that verify it.
type source struct {
	url  *url.URL // without user; the scheme is http, https or file
	user *url.Userinfo
	name string // name of the file

	http       *http.Client // nil with scheme file
	inactivity time.Duration
}

func newSource(c Client, location string) (*source, error) {
	u, err := parseURL(location)
	if err != nil {
		return nil, err
	}
	s := &source{url: u, user: u.User, name: path.Base(u.Path), inactivity: c.Inactivity}
	u.User = nil
	if strings.HasSuffix(u.Path, "/") || s.name == "." || s.name == ".." {
		return nil, fmt.Errorf("the URL %s does not name a file", s)
	}
	if !s.local() {
		s.http, err = newHTTP(c.CAFile)
	}
	return s, err
}

// parseURL never quotes the URL in its errors, because any part of a malformed URL may be
// a password.
func parseURL(location string) (*url.URL, error) {
	if strings.HasPrefix(location, "/") {
		return &url.URL{Scheme: "file", Path: location}, nil
	}
	u, err := url.Parse(location)
	if err != nil {
		return nil, errors.New("the URL is malformed; characters with a meaning in URLs, in a password too, must be written as %XX")
	}
	remote := (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != ""
	if !remote && (u.Scheme != "file" || u.Host != "") {
		return nil, errors.New("the URL is none of http://HOST/PATH, https://HOST/PATH, file:///PATH and /PATH")
	}
	return u, nil
}

func (s *source) local() bool { return s.url.Scheme == "file" }

func (s *source) close() {
	if !s.local() {
		s.http.CloseIdleConnections()
	}
}

func (s *source) String() string { return shown(s.url) }

// String returns the request's URL without possible secrets: the user, and the query,
// which contains signatures for object stores.
func (r Request) String() string {
	u, err := parseURL(r.URL)
	if err != nil {
		return "malformed URL"
	}
	return shown(u)
}

// Server returns the host[:port] to which the request is sent; it is empty for a local
// file.
func (r Request) Server() string {
	u, err := parseURL(r.URL)
	if err != nil {
		return ""
	}
	return u.Host
}

func shown(u *url.URL) string {
	if u.Scheme == "file" {
		return u.Path
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}).String()
}

// readBeside returns the content of a small file in the same directory. It drops the
// query, which belongs to the image file, as systemd does
// (import_url_change_last_component()).
func (s *source) readBeside(ctx context.Context, name string) ([]byte, error) {
	content, err := s.read(ctx, s.url.ResolveReference(&url.URL{Path: "./" + name}))
	if err == nil && len(content) > maxBeside {
		err = fmt.Errorf("it has more than %d bytes", maxBeside)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return content, nil
}

func (s *source) read(ctx context.Context, u *url.URL) ([]byte, error) {
	body, err := s.open(ctx, u)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(io.LimitReader(body, maxBeside+1))
}

func (s *source) open(ctx context.Context, u *url.URL) (io.ReadCloser, error) {
	if s.local() {
		return openLocal(ctx, u.Path)
	}
	resp, err := s.get(ctx, u, nil)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, status(resp.StatusCode)
	}
	return resp.Body, nil
}
