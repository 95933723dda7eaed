# Who trains, whose faces are released, who is verified, in miniature: LFW by the ten folds of its pairs, which share no
# person (fold 0: people whom no pair names). Fixed before the first result; nothing is tuned on folds 9 and 10.
#
#   python tools/split_lfw.py lfw112 lfw_pairs.txt OUT
#
# tools/reproduce.py runs it. Aligned faces, 112×112, a folder a person; the list is LFW's of View 2.
people = 5749
images = 13233
names_sha256 = 'f0b6a8ca4c30bb056042425f8211613256db89d298a9964c1649859c33dd9ba7'  # of the sorted names of all images, NAME/NAME_0001, a line each
pairs_sha256 = 'ea42330c62c92989f9d7c03237ed5d591365e89b3e649747777b70e692dc1592'  # of the list

folds = 10
pairs_of_fold = 600

parts = dict(
    start=dict(folds=[0]),  # the pixel-trained MAE that every FaceMAE starts from: people of no other part
    train=dict(folds=[1, 2, 3, 4, 5]),  # W, in the place of WebFace260M
    deploy=dict(folds=[6, 7, 8], min_images=2, people=508),  # C, in the place of CASIA-WebFace
    # Table 4: W and C in each other's place, halves of W, and a training set that shares people with C on purpose.
    train_c=dict(folds=[6, 7, 8]),
    deploy_w=dict(folds=[1, 2, 3, 4, 5], min_images=2, people=774),
    train_sub1=dict(folds=[1, 2, 3, 4, 5], half=0),
    train_sub2=dict(folds=[1, 2, 3, 4, 5], half=1),
    deploy_sub1=dict(folds=[1, 2, 3, 4, 5], half=0, min_images=2, people=381),
    deploy_sub2=dict(folds=[1, 2, 3, 4, 5], half=1, min_images=2, people=393),
    train_overlap=dict(folds=[3, 4, 5, 6, 7]),
    test=dict(folds=[9, 10]),
)
test_folds = [9, 10]  # whose pairs verify
