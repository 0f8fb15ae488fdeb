"""Tables as public sets have them: columns by their usual names, text that stays text, images wherever they lie,
persons, splits."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdnb.datasets import cache, describe, fetch, load, persons
from kdnb.datasets.tables import listing, read
from kdnb.errors import DataError, DataNotFoundError, ParameterError
from kdnb.settings import resolve
from kdnb.sources import absolute, check_name, parts


def put(root: Path, *paths: str) -> None:
    """Small images of noise, no two alike."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng([*path.encode()]).integers(0, 256, (8, 8), dtype=np.uint8)).save(
            root / path
        )


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


FOUR = [f"{k}.png" for k in range(4)]
AB = "0.png,a\n1.png,b\n2.png,a\n3.png,b\n"
CHESTS = "0.png,a,0,7\n1.png,b,0,8\n2.png,a,1,7\n3.png,b,1,8\n9.png,a|b,0,9\n"
EYES = "".join(f"{k // 2},60,0.png,1,0,['{'ab'[k % 2]}'],{k}.png\n" for k in range(4))

UNDERSTOOD = {  # header and rows, images -> labels by id
    "plain": ("image,label\n" + AB, FOUR),
    "APTOS": ("id_code,diagnosis\n" + AB.replace(".png", ""), [f"train_images/{name}" for name in FOUR]),
    "HAM10000": (
        "lesion_id,image_id,dx,dx_type,age\nL1,0,a,histo,40\nL2,1,b,histo,40\nL1,2,a,histo,40\nL3,3,b,histo,40\n",
        [f"HAM10000_images_part_{k % 2 + 1}/{k}.png" for k in range(4)],
    ),
    "ISIC, one column a class": (
        "image,a,b,c\n0,1.0,0.0,0.0\n1,0.0,1.0,0.0\n2,1.0,0.0,0.0\n3,0.0,1.0,0.0\n",
        [f"ISIC_Training_Input/{name}" for name in FOUR],
    ),
    "ChestX-ray14": (
        "Image Index,Finding Labels,Follow-up #,Patient ID\n" + CHESTS,
        [f"images_00{k}/images/{k}.png" for k in range(4)] + ["images_009/images/9.png"],
    ),
    "ODIR": (
        "ID,Patient Age,Left-Fundus,N,D,labels,filename\n" + EYES,
        [f"preprocessed_images/{name}" for name in FOUR],
    ),
    "Kaggle's retinopathy": ("image,level\n" + AB.replace(".png", ""), [f"train/{k}.jpeg" for k in range(4)]),
    "IDRiD": ("Image name,Retinopathy grade,Risk of macular edema \n" + AB.replace("\n", ",1\n"), FOUR),
    "OASIS": ("MRI ID,Group\n" + AB.replace(".png", ""), FOUR),
    "a path": ("path,class\n" + "".join(f"img/x/{row}\n" for row in AB.split()), [f"img/x/{name}" for name in FOUR]),
    "a path of another machine": (
        "path,class\n" + "".join(f"/home/me/set/img/{row}\n" for row in AB.split()),
        [f"deep/img/{name}" for name in FOUR],
    ),
    "a path of Windows": (
        "path,class\n" + "".join(f"set\\img\\{row}\n" for row in AB.split()),
        [f"img/{name}" for name in FOUR],
    ),
    "letters of another case": ("Image,Label\n" + AB.replace(".png", ".PNG"), FOUR),
    "an odd name for the images": ("fundus,label\n" + AB, FOUR),
    "semicolons": ("image;label\n" + AB.replace(",", ";"), FOUR),
    "tabulators": ("image\tlabel\n" + AB.replace(",", "\t"), FOUR),
    "blanks": (" image , label \n" + AB.replace(",", " , "), FOUR),
    "empty lines and an index": (",image,label\n0,0.png,a\n1,1.png,b\n,,\n\n2,2.png,a\n3,3.png,b\n", FOUR),
    "Windows' line ends": ("image,label\r\n" + AB.replace("\n", "\r\n"), FOUR),
    "quotes": ('"image","label"\n"0.png","a"\n"1.png","b"\n"2.png","a"\n"3.png","b"\n', FOUR),
    "images in class folders": (
        "image,label\n" + AB.replace(".png", ""),
        ["a/0.png", "b/1.png", "a/2.png", "b/3.png", "b/0.png"],
    ),
    "the same names in a test folder": (
        "image,label\n" + AB.replace(".png", ""),
        [f"train_images/{name}" for name in FOUR] + [f"test_images/{name}" for name in FOUR],
    ),
    "masks of the same name": (
        "image,label\n" + AB.replace(".png", ""),
        [f"images/{name}" for name in FOUR] + [f"masks/{name}" for name in FOUR],
    ),
    "masks beside": (
        "image,label\n" + AB.replace(".png", ""),
        FOUR + [name.replace(".png", "_mask.png") for name in FOUR],
    ),
    "an empty cell too many": ("image,label\n" + AB.replace("\n", ",\n"), FOUR),
    "a comma in quotes": ("image,label,note\n" + AB.replace("\n", ',"x, y"\n'), FOUR),
    "a line break in quotes": ('image,label,"a\nnote"\n' + AB.replace("\n", ',"x\ny"\n'), FOUR),
    "rows cut short": ("image,label,note\n" + AB, FOUR),
    "a row twice": ("image,label\n" + AB + "0.png,a\n", FOUR),
    "Excel says what separates": ("sep=;\nimage;label\n" + AB.replace(",", ";"), FOUR),
    "Excel, with Windows' line ends": (
        "SEP=;\r\n\r\nimage;label\r\n" + AB.replace(",", ";").replace("\n", "\r\n"),
        FOUR,
    ),
    "Excel, in quotes": ('"sep=,"\nimage,label\n' + AB, FOUR),
    "a separator said, another counted": ("sep=\t\nimage\tlabel\ta,b,c\n" + AB.replace(",", "\t"), FOUR),
    "empty lines in front": ("\n \n,,\nimage,label\n" + AB, FOUR),
    "an index behind tabulators": (
        "\timage\tlabel\n" + "".join(f"7\t{row}\n" for row in AB.replace(",", "\t").split("\n") if row),
        FOUR,
    ),
    "an old Mac's line ends": ("image,label\r" + AB.replace("\n", "\r"), FOUR),
}


@pytest.mark.parametrize("case", UNDERSTOOD)
def test_usual_tables_are_understood(case, tmp_path):
    text, images = UNDERSTOOD[case]
    put(tmp_path, *images)
    listing = read(write(tmp_path / "train.csv", text))
    assert {Path(name).stem: label for name, label in zip(listing.ids, listing.labels, strict=True)} == {
        "0": "a",
        "1": "b",
        "2": "a",
        "3": "b",
    }
    assert len(listing.ids) == 4
    assert listing.ids == sorted(listing.ids) and all((tmp_path / name).is_file() for name in listing.ids)
    assert "2 classes by the table train.csv" in listing.understood() and "\n" not in listing.understood()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_a_table_in_another_encoding(encoding, tmp_path):
    put(tmp_path, *FOUR)
    listing = read(
        write(tmp_path / "t.csv", "image,label\n0.png,Kératite\n1.png,b\n2.png,Kératite\n3.png,b\n", encoding)
    )
    assert listing.classes == ("Kératite", "b")


def test_one_class_whatever_system_wrote_its_letters(tmp_path):
    put(tmp_path, *FOUR)
    listing = read(
        write(tmp_path / "t.csv", "image,label\n0.png,K\u00e9ratite\n1.png,b\n2.png,Ke\u0301ratite\n3.png,b\n")
    )
    assert listing.classes == ("K\u00e9ratite", "b")


NAMES = ["0", "01", "1.0", "none", "None", "NaN", "nan", "NA", "null", "True", "all", "1e5", "-", "#N/A"]


def test_names_of_classes_stay_as_they_are_through_table_and_audit(tmp_path, monkeypatch):
    from kdnb.datasets import audit
    from kdnb.runs import Run

    monkeypatch.setattr(cache, "FOLDER", tmp_path / "cache")
    rows = [(f"{k}_{j}x.png", name) for k, name in enumerate(NAMES) for j in range(6)]
    put(tmp_path, *(image for image, _ in rows))
    write(tmp_path / "t.csv", "image,label\n" + "".join(f"{image},{name}\n" for image, name in rows))
    data = load(f"table:{tmp_path / 't.csv'}", 32)
    assert data.classes == tuple(sorted(NAMES))
    assert {name: data.classes[label] for name, label in zip(data.ids, data.labels, strict=True)} == dict(rows)
    run = Run(resolve("phantom", "smoke", run_dir=tmp_path / "run"), "01_data_prep")
    run.save_table("data_audit", audit.table(data, audit.twins(data)))
    assert set(run.load_table("data_audit")["class"]) == set(NAMES)


SPLITS = {
    "words": ("train", "val", "test"),
    "long words": ("Training", "Validation", "Testing"),
    "capitals": ("TRAIN", "VALID", "TEST"),
    "numbers": ("0", "1", "2"),
    "FER": ("Training", "PublicTest", "PrivateTest"),
    "sets": ("train_set", "dev set", "test_set"),
}


@pytest.mark.parametrize("case", SPLITS)
@pytest.mark.parametrize("column", ["split", "Subset", "Usage", "partition"])
def test_a_published_split_in_a_column(case, column, tmp_path):
    images = [f"{k}.png" for k in range(6)]
    put(tmp_path, *images)
    rows = "".join(f"{image},{'ab'[k % 2]},{SPLITS[case][k // 2]}\n" for k, image in enumerate(images))
    listing = read(write(tmp_path / "t.csv", f"image,label,{column}\n{rows}"))
    assert listing.split == ["train", "train", "val", "val", "test", "test"]
    assert "published split (train 2, val 2, test 2)" in listing.understood()


def test_a_row_without_a_split_is_left_out_and_counted(tmp_path):
    images = [f"{k}.png" for k in range(6)]
    put(tmp_path, *images)
    rows = "".join(f"{image},{'ab'[k % 2]},{('train', 'test', '')[k // 2]}\n" for k, image in enumerate(images))
    listing = read(write(tmp_path / "t.csv", "image,label,split\n" + rows))
    assert listing.split == ["train", "train", "test", "test"] and "2 rows without a split" in listing.understood()


def test_published_folds_in_a_column(tmp_path):
    images = [f"{k}.png" for k in range(6)]
    put(tmp_path, *images)
    table = write(
        tmp_path / "t.csv",
        "image,label,fold\n" + "".join(f"{image},{'ab'[k % 2]},{k // 2}\n" for k, image in enumerate(images)),
    )
    with pytest.raises(DataError, match="has folds in its column 'fold': add test=0"):
        read(table)
    assert read(table, {"test": "1"}).split == ["train", "train", "test", "test", "train", "train"]
    assert set(read(table, {"split": "off"}).split) == {""}
    with pytest.raises(DataError, match="has no '7', only 0, 1, 2"):
        read(table, {"test": "7"})
    with pytest.raises(DataError, match="no column of folds"):
        read(write(tmp_path / "u.csv", "image,label\n" + AB), {"test": "1"})


def test_folders_of_masks_are_read_once_however_many_masks_a_table_names(tmp_path, monkeypatch):
    names = [f"{k}.png" for k in range(8)]
    put(tmp_path, *(f"images/{name}" for name in names), *(f"masks/{k}_mask.png" for k in range(8)))
    rows = "".join(f"{name},{'ab'[k % 2]},{k}_mask\n" for k, name in enumerate(names))
    table, looked, rglob = write(tmp_path / "t.csv", f"image,label,mask\n{rows}"), [], Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda path, pattern: looked.append(path) or rglob(path, pattern))
    assert [path.name for masks in read(table).masks for path in masks] == [f"{k}_mask.png" for k in range(8)]
    assert len(looked) <= 2


WRITTEN = {  # the file on disk, as the table names it
    "composed letters": ("e\u0301te\u0301 {}.png", "\u00e9t\u00e9 {}.png"),
    "decomposed letters": ("\u00e9t\u00e9 {}.png", "e\u0301te\u0301 {}"),
    "folders, too": ("e\u0301/{}.png", "\u00e9/{}.png"),
    "two blanks": ("scan  {}.png", "scan  {}.png"),
    "two blanks that a program made one": ("scan  {}.png", "scan {}"),
    "a blank before the ending": ("scan{} .png", "scan{}"),
    "a blank behind the ending": ("scan{}.png", "scan{}.png \u00a0"),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_a_name_is_found_whatever_wrote_it(case, tmp_path):
    on_disk, in_table = WRITTEN[case]
    put(
        tmp_path,
        *(on_disk.format(k) for k in range(4)),
        *(f"other/{on_disk.format(k)}" for k in range(4) if "/" in on_disk),
    )
    rows = "".join(f"{in_table.format(k)},{'ab'[k % 2]}\n" for k in range(4))
    listing = read(write(tmp_path / "t.csv", "image,label\n" + rows))
    assert [str(path.relative_to(tmp_path)) for path in listing.files] == [on_disk.format(k) for k in range(4)]
    assert listing.labels == ["a", "b", "a", "b"]


def test_a_person_is_one_however_the_letters_are_composed(tmp_path):
    put(tmp_path, *FOUR)
    listing = read(
        write(tmp_path / "t.csv", "image,label,person\n0.png,a,Jose\u0301\n1.png,b,Jos\u00e9\n2.png,a,B\n3.png,b,C\n")
    )
    assert listing.persons == ["Jos\u00e9", "Jos\u00e9", "B", "C"]


MASKS = {  # where masks lie, as the table names them
    "from the table": ("lesions/{}_m.png", "lesions/{}_m.png"),
    "from the images' folder": ("img/lesions/{}_m.png", "lesions/{}_m.png"),
    "beside the image": ("img/deep/{}_m.png", "{}_m.png"),
    "called as the images": ("{}.png", "{}.png"),
    "other letters": ("lesions/e\u0301{}.png", "lesions/\u00c9{}.PNG"),
}


@pytest.mark.parametrize("case", MASKS)
def test_masks_are_found_from_the_table_and_from_the_images(case, tmp_path):
    on_disk, in_table = MASKS[case]
    masks = [on_disk.format(k) for k in range(4)]
    put(tmp_path, *(f"img/deep/{k}.png" for k in range(4)), *masks)
    rows = "".join(f"{k}.png,{'ab'[k % 2]},{in_table.format(k)}\n" for k in range(4))
    listing = read(write(tmp_path / "t.csv", "image,label,mask\n" + rows), {"images": "img"})
    assert [[str(path.relative_to(tmp_path)) for path in paths] for paths in listing.masks] == [
        [name] for name in masks
    ]
    assert listing.left_out == {}


def test_an_image_is_not_its_own_mask_and_it_is_said_where_masks_were_looked_for(tmp_path):
    put(tmp_path / "set", *(f"img/{name}" for name in FOUR))
    rows = "".join(f"{name},{'ab'[k % 2]},{name}\n" for k, name in enumerate(FOUR))
    listing = read(write(tmp_path / "set" / "t.csv", "image,label,mask\n" + rows), {"images": "img"})
    assert listing.masks == [] and (
        "4 masks that are not there, such as 0.png, looked for from img and set and beside the images"
        in listing.understood()
    )


LEFT_OUT = {  # what is appended to the rows -> what is said
    "several labels": ("4.png,a|b\n", "1 rows with several labels"),
    "a list of labels": ("4.png,\"['a', 'b']\"\n", "1 rows with several labels"),
    "no label": ("4.png,\n", "1 rows without a label"),
    "a missing file": ("gone.png,a\nlost.png,b\n", "2 rows whose image is not there, such as gone.png"),
    "rows that contradict": ("0.png,b\n", "1 images whose rows contradict each other"),
    "an image without a row": ("", "1 images that the table does not name or label"),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_what_is_left_out_is_counted(case, tmp_path):
    rows, words = LEFT_OUT[case]
    put(tmp_path, *FOUR, "4.png")
    listing = read(write(tmp_path / "t.csv", "image,label\n" + AB + rows))
    assert words in listing.understood() and set(listing.ids) <= {*FOUR}


REFUSED = {  # table's text -> what the sentence must name
    "no image column": ("a,b\n1,2\n3,4\n", ["no column that is called like images (a, b)", "image=COLUMN"]),
    "no header": (AB, ["first line", "image,label"]),
    "no label column": ("image,age\n0.png,3\n1.png,4\n", ["label", "age", "label=COLUMN"]),
    "two image columns": (
        "Left-Fundus,Right-Fundus,label\n0.png,1.png,a\n2.png,3.png,b\n",
        ["Left-Fundus, Right-Fundus", "image=COLUMN"],
    ),
    "one class": ("image,label\n0.png,a\n1.png,a\n", ["one class, 'a'"]),
    "no file": ("image,label\nx.png,a\ny.png,b\n", ["'x.png'", "images=FOLDER"]),
    "a split that is none": ("image,label,split\n0.png,a,train\n1.png,b,left\n", ["'split'", "'left'", "split=off"]),
    "two numbers for splits": ("image,label,split\n0.png,a,0\n1.png,b,1\n", ["'split'", "test=VALUE"]),
    "a format that is not read": ("image,label\n0.heic,a\n1.heic,b\n", [".heic files", ".png"]),
    "a file that is no image": ("image,label\nt.csv,a\nt.csv,b\n", ["'t.csv'", "images=FOLDER"]),
    "no training": ("image,label,split\n0.png,a,test\n1.png,b,test\n", ["no training rows", "split=off"]),
    "test lacks a class": (
        "image,label,split\n0.png,a,train\n1.png,b,train\n2.png,a,test\n",
        ["'b'", "only one of train and test"],
    ),
    "no rows": ("image,label\n", ["no rows"]),
    "nothing": ("", ["no rows"]),
    "ragged": ("image,label\n0.png,a\n1.png,b,c\n", ["row 3", "quotes"]),
    "ragged below empty lines": ("sep=,\n\nimage,label\n0.png,a\n1.png,b,c\n", ["row 5", "quotes"]),
    "only several labels": ("image,label\n0.png,a|b\n1.png,b|c\n", ["no image with one label"]),
    "several files for a name": ("image,label\ntwice,a\n1,b\n", ["'twice'", "images=FOLDER"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_sentence(case, tmp_path):
    text, words = REFUSED[case]
    put(tmp_path, *FOUR, "left/twice.png", "right/twice.png")
    with pytest.raises(DataError) as caught:
        read(write(tmp_path / "t.csv", text))
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert message.endswith(".") and "\n" not in message and "t.csv" in message


def test_columns_and_folders_can_be_named(tmp_path):
    put(tmp_path, *(f"{side}/{name}" for side in ("left", "right") for name in FOUR))
    rows = "".join(f"{k},{'ab'[k % 2]},{'xy'[k // 2]},p{k // 2},left\n" for k in range(4))
    path = write(tmp_path / "t.csv", "No: 1,label,true class,who,split\n" + rows)
    name = f"table:{path}:image=No: 1,label=true class,person=who,split=off,images=right"
    chosen = listing(check_name(name), path)
    assert chosen.ids == [f"right/{name}" for name in FOUR] and chosen.labels == ["x", "x", "y", "y"]
    assert chosen.persons == ["p0", "p0", "p1", "p1"]
    with pytest.raises(DataError, match="no column 'whom'"):
        read(path, {"person": "whom"})
    with pytest.raises(DataError, match="no folder"):
        read(path, {"images": "middle"})


def test_links_are_followed_and_a_loop_of_them_ends(tmp_path):
    put(tmp_path / "disk", *FOUR)
    path = write(tmp_path / "set" / "t.csv", "image,label\n" + AB)
    (tmp_path / "set" / "images").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "again").symlink_to(tmp_path / "set")
    assert read(path).ids == [f"images/{name}" for name in FOUR]


def test_the_name_of_a_table_is_checked_before_anything_is_installed(tmp_path, monkeypatch):
    put(tmp_path, *FOUR)
    path = write(tmp_path / "my: labels=1.csv", "image,label\n" + AB)
    assert parts(f"table:{path}") == ("table", str(path), {}), "a path that is there is never cut"
    assert parts("table:a/b.csv:label=x,y,person=off") == ("table", "a/b.csv", {"label": "x,y", "person": "off"})
    monkeypatch.chdir(tmp_path)
    assert absolute("table:t.csv:label=dx") == f"table:{tmp_path / 't.csv'}:label=dx"
    assert absolute("folder:set:person=off") == f"folder:{tmp_path / 'set'}:person=off"
    assert resolve(f"table:{path}").dataset == f"table:{path}"
    for wrong in (f"table:{path}:labels=dx", f"folder:{tmp_path}:label=dx", f"folder:{tmp_path}:person=on", "table:"):
        with pytest.raises(ParameterError, match="dataset is"):
            check_name(wrong)
    for wrong, words in (
        (tmp_path / "gone.csv", "is no file"),
        (tmp_path / "0.png", "is none of these kinds"),
        (tmp_path, "is no file"),
    ):
        with pytest.raises(DataNotFoundError, match=words):
            resolve(f"table:{wrong}")


@pytest.fixture
def eyes(tmp_path, monkeypatch) -> Path:
    """24 images of 12 persons, whose names tell nothing, in a table."""
    monkeypatch.setattr(cache, "FOLDER", tmp_path / "cache")
    put(tmp_path, *(f"img/x{k}y.png" for k in range(24)))
    rows = "".join(f"x{k}y,{'ab'[k % 2]},P{k // 2}\n" for k in range(24))
    return write(tmp_path / "t.csv", "image,label,patient_id\n" + rows)


def test_persons_of_a_column_are_on_one_side(eyes, capsys):
    data = load(f"table:{eyes}", 32, split_protocol="leak_free")
    assert len(data) == 24 and len(set(data.groups)) == 12
    assert all(len(set(data.split[data.groups == group])) == 1 for group in set(data.groups))
    assert data.notes["persons"] == "at most 12 persons, found by the column 'patient_id' of t.csv"
    assert describe(data).endswith(persons(data)) and "24 images in 2 classes by the table t.csv" in describe(data)
    assert fetch.main(["--dataset", f"table:{eyes}"]) == 0
    assert "24 images in 2 classes by the table t.csv" in capsys.readouterr().out
    nobody = load(f"table:{eyes}:person=off", 32, split_protocol="leak_free")
    assert len(set(nobody.groups)) == 24 and nobody.notes["persons"].startswith(
        "persons were not looked for (person=off)"
    )


def test_rows_without_a_person_stand_alone(eyes):
    eyes.write_text(eyes.read_text().replace("P11", "").replace("P10", ""))
    data = load(f"table:{eyes}", 32)
    assert len(set(data.groups)) == 14 and "empty for 4 images" in data.notes["persons"]


def test_the_rule_of_names_can_be_switched_off(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "FOLDER", tmp_path / "cache")
    put(
        tmp_path,
        *(f"set/{label}/{number}_{side}.png" for label in "ab" for number in range(6) for side in ("left", "right")),
    )
    assert len(set(load(f"folder:{tmp_path / 'set'}", 32).groups)) == 6
    off = load(f"folder:{tmp_path / 'set'}:person=off", 32)
    assert len(set(off.groups)) == 24 and "not looked for" in describe(off) and "too good" in describe(off)


def test_a_table_believes_no_folder_but_a_subjects(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "FOLDER", tmp_path / "cache")
    for name, count in (("images_0{}", 24), ("A{}", 24), ("subject_{}", 6)):
        root = tmp_path / name[0]
        put(root, *(f"{name.format(k % 6)}/x{k}y.png" for k in range(24)))
        table = write(root / "t.csv", "image,label\n" + "".join(f"x{k}y,{'ab'[k // 12]}\n" for k in range(24)))
        data = load(f"table:{table}", 32, split_protocol="leak_free")
        assert len(set(data.groups)) == count, name
        assert ("subject_0 of subject_0/x0y.png" in describe(data)) == (count == 6), "which folder was taken is said"
        assert all(len(set(data.split[data.groups == group])) == 1 for group in set(data.groups))


def test_a_changed_table_is_another_study(eyes, tmp_path):
    from kdnb.pipeline import write_stamps

    settings = resolve(f"table:{eyes}", "smoke", run_dir=tmp_path / "run")
    stamps = []
    for line in ("", "", "x0y,b,P0\n"):
        eyes.write_text(eyes.read_text() + line)
        write_stamps(settings)
        stamps.append((tmp_path / "run" / ".stamps" / "settings.json").read_text())
    assert stamps[0] == stamps[1] != stamps[2]


def test_a_parquet_table_reads_as_its_csv_or_says_what_is_missing(tmp_path, monkeypatch):
    import pandas as pd

    put(tmp_path, *FOUR)
    frame = pd.DataFrame(
        {"image": FOUR, "label": pd.array([0, 1, None, 1], "Int64"), "flag": [True, False, True, False]}
    )
    monkeypatch.setattr(pd, "read_parquet", lambda path, dtype_backend: frame)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    listing = read(tmp_path / "t.parquet")
    assert listing.labels == ["0", "1", "1"] and listing.left_out["rows without a label"] == 1

    def missing(path, dtype_backend):
        raise ImportError("pyarrow")

    monkeypatch.setattr(pd, "read_parquet", missing)
    with pytest.raises(DataError, match="save the table as CSV"):
        read(tmp_path / "t.parquet")


def test_parquet_as_it_is_written(tmp_path):
    pytest.importorskip("pyarrow")
    import pandas as pd

    put(tmp_path, *FOUR)
    frame = pd.DataFrame({"image": FOUR, "label": ["01", "none", "01", "none"], "patient_id": [1, 1, 2, None]})
    for written, options in (
        (frame, {}),
        (frame.set_index("image"), {}),
        (frame.astype({"label": "category"}), {"compression": "zstd"}),
    ):
        written.to_parquet(tmp_path / "t.parquet", **options)
        listing = read(tmp_path / "t.parquet")
        assert (listing.ids, listing.labels, listing.classes) == (
            sorted(FOUR),
            ["01", "none", "01", "none"],
            ("01", "none"),
        )
        assert listing.persons == ["1.0", "1.0", "2.0", ""]
    for inside in ([{"bytes": b"PNG", "path": name} for name in FOUR], [bytes(2000)] * 4):
        frame.assign(image=inside).to_parquet(tmp_path / "t.parquet")
        with pytest.raises(DataError, match="holds the images themselves: write them as files") as refused:
            read(tmp_path / "t.parquet")
        assert len(str(refused.value)) < 300
    (tmp_path / "t.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match="cannot be read as a table"):
        read(tmp_path / "t.parquet")
