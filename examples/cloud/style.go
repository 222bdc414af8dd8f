package main

import (
	"crypto/sha256"
	"encoding/base64"
)

// pageStyle is the operator page's style sheet; styleHash is how the content
// security policy names it, so that no other style is applied.
const pageStyle = `
body{font:16px/1.4 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1b2330;background:#f7f8fa}
h1{font-size:1.5rem} h2{font-size:1.1rem;margin:0}
article{background:#fff;border:1px solid #d8dde5;border-left:6px solid #9aa4b2;border-radius:6px;padding:1rem;margin:1rem 0}
article.affirming{border-left-color:#1a7f45} article.warning{border-left-color:#b77500}
article.contraindicated,article.revoked{border-left-color:#b3261e}
ol{list-style:none;margin:.6rem 0 0;padding:0} li{padding:.2rem 0 .2rem 1.2rem;border-left:2px solid #d8dde5}
li.ok::before{content:"✓ ";color:#1a7f45} li.bad::before{content:"✗ ";color:#b3261e}
small,time{color:#5b6675} code{font-size:.9em;overflow-wrap:anywhere}
@media (prefers-color-scheme:dark){body{background:#12161c;color:#e4e8ee}article{background:#1a2029;border-color:#323b49}small,time{color:#9aa4b2}}
`

var styleHash = func() string {
	sum := sha256.Sum256([]byte(pageStyle))
	return base64.StdEncoding.EncodeToString(sum[:])
}()
