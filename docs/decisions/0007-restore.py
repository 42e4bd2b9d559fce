"""Profile flight2 -> training state (mean weights)."""

import numpy as np, torch, onnx
from dataclasses import asdict
from onnx import numpy_helper
from perigee.bitstream.profile import find_profile
from perigee.bitstream import prior as P
from perigee.models.codec.codec import Codec, CodecConfig
from perigee.models.codec.flight import Synthesis


def consts(path):
    g = onnx.load(path).graph
    return [
        numpy_helper.to_array(i).astype(np.float32) if i.data_type in (1, 10) else numpy_helper.to_array(i)
        for i in g.initializer
    ]


def restore(name="flight2"):
    prof = find_profile(name)
    f = prof.folder
    codec = Codec(CodecConfig(("swift",)))
    with torch.no_grad():
        a = consts(f / "analysis-swift.onnx")
        lin = codec.analysis.linear
        first = a[0][..., 0].reshape(3, 16, 3, 16)  # c u k i
        for c in range(3):
            m = first[c].transpose(1, 0, 2).reshape(3, -1)  # k, (u i)
            u, s, v = np.linalg.svd(m, full_matrices=False)
            assert s[1] < 1e-4 * s[0], s
            lin.colours[c] = torch.from_numpy(u[:, 0])
            lin.rows[c] = torch.from_numpy((s[0] * v[0]).reshape(16, 16))
        lin.columns.copy_(torch.from_numpy(a[2].reshape(3, 16, 16, 16)))
        lin.order.copy_(torch.from_numpy(a[3]))
        codec.gains.knots.copy_(torch.from_numpy(a[7].reshape(7, -1)))
        assert np.array_equal(a[7], prof.contract.gain_knots)
        convs = [m for m in codec.hyper.layers if hasattr(m, "weight")]
        for m, (w, b) in zip(convs, zip(a[10:20:2], a[11:20:2])):
            m.weight.copy_(torch.from_numpy(w))
            m.bias.copy_(torch.from_numpy(b))
        shapes = P.layer_shapes(codec.config.prior)
        for n, layer in prof.contract.layers.items():
            m = codec.prior.layers[n.replace(".", "_")]
            s = shapes[n]
            bits = layer.shift.astype(int) - (s.input_fraction - s.output_fraction)
            m.weight.copy_(torch.from_numpy(np.ldexp(layer.weight.astype(np.float64), -bits[:, None, None, None])))
            m.bias.copy_(torch.from_numpy(np.ldexp(layer.bias.astype(np.float64), -(bits + s.input_fraction))))
        r = consts(f / "reconstruction.onnx")
        st = r[2].reshape(-1) / 2
        codec.reconstruction.pull.copy_(torch.from_numpy(np.log(st / (1 - st))))
        codec.reconstruction.inverse_gains.knots.copy_(torch.from_numpy(r[10]))
        s = consts(f / "synthesis.onnx")
        codec.synthesis.linear.weight.copy_(torch.from_numpy(s[8][:, :, 0, 0].T.reshape(-1, 3, 16, 16).copy()))
        codec.synthesis.input_scale.copy_(torch.from_numpy(s[9].reshape(-1)))
        ws = [x for x in s[15:] if x.ndim in (1, 4) and (x.ndim == 4 or x.size > 1)]
        mods = []
        for lv in ("level16", "level8", "image4", "level4", "image2", "level2"):
            mod = getattr(codec.synthesis, lv)
            mods += [m for m in mod.modules() if isinstance(m, torch.nn.Conv2d)]
        i = 0
        for m in mods:
            assert ws[i].shape == tuple(m.weight.shape), (ws[i].shape, m.weight.shape)
            w = ws[i]
            i += 1
            if m in (codec.synthesis.image4, codec.synthesis.image2):
                side = 4 if m is codec.synthesis.image4 else 2
                order = np.arange(side * side * 3).reshape(side * side, 3).T.reshape(-1)
                w = w[:, order]
            m.weight.copy_(torch.from_numpy(w))
            if m.bias is not None:
                m.bias.copy_(torch.from_numpy(ws[i]))
                i += 1
        # hyper prior: fit mixture to tables by gradient
        zf = torch.from_numpy(prof.contract.tables.z_frequencies.astype(np.float64) / 65536).float().reshape(8, 64, 129)
        hp = codec.hyper_prior
    opt = torch.optim.Adam(hp.parameters(), lr=0.03)
    zs = torch.arange(-64, 65).float()
    for it in range(600):
        z = zs.reshape(1, 1, 129, 1).expand(8, 64, 129, 1)
        lik = hp.likelihood(z, torch.arange(8))[..., 0]
        loss = -(zf * torch.log(lik)).sum(2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    ent = -(zf * torch.log(zf.clamp_min(1e-9))).sum(2).mean()
    print("z fit", loss.item(), "entropy", ent.item())
    return codec


if __name__ == "__main__":
    codec = restore()
    torch.save({"mean": codec.state_dict(), "codec_config": asdict(codec.config)}, "runs/lab/flight2.pt")
    from pathlib import Path
    from perigee.training.data import load_folders, split
    from perigee.training.loop import evaluate

    imgs = load_folders(
        [Path("../shared/data/train"), Path("../shared/data/ucm-train")],
        ("oam7cm_kampala", "oam10cm_5dded5bc", "s2l2a", "drone_garfield"),
    )
    tr, va = split(imgs, 0.02)
    for r in evaluate(codec, va, True, "swift", 12):
        print(r)
